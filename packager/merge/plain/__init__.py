"""Plain LoRA, merged without PEFT's layers."""

"""Every other method, merged by PEFT's own layers, one module at a time."""

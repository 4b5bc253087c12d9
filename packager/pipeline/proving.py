"""Proving a prompt where it is rendered: by a daemon, by the embedded runtime, or offline."""

from __future__ import annotations

from packager.errors import UnsupportedError
from packager.prompt.conversation import Conversation
from packager.prompt.proof import Render
from packager.runtime.ollama import Daemon


def daemon_renderer(daemon: Daemon, name: str) -> Render:
    """How a daemon renders conversations for a model.

    Raises:
        UnsupportedError: when called, if the daemon is too old to tell.
    """

    def render(tried: Conversation) -> str:
        prompt = daemon.render(name, tried.messages, tools=tried.tools, thinking=tried.thinking)
        if prompt is None:
            raise UnsupportedError(
                f"Ollama {daemon.version()} at {daemon.host} does not tell how it renders.",
                next_step="Update Ollama: newer ones tell (0.12 and later).",
            )
        return prompt

    return render

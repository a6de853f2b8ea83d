"""An HTTP server over the engine that OpenAI's, Anthropic's and llama.cpp's clients can be pointed at."""

from .config import ServeConfig
from .server import serve

__all__ = ["ServeConfig", "serve"]

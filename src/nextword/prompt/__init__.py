"""Templates and shots → prompts."""

from .template import Prompt, Shot, Template, few_shot, parse_shot

__all__ = ["Prompt", "Shot", "Template", "few_shot", "parse_shot"]

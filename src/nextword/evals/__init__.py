"""Prompt evaluation: tasks, templates, few-shot sampling, scoring, statistics, report."""

from .api import evaluate
from .template import Prompt, Template, few_shot, parse_shot

__all__ = ["Prompt", "Template", "evaluate", "few_shot", "parse_shot"]

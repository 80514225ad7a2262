"""The report of a run for people: a page that needs nothing else, and its Markdown."""

from flower_split.reporting.report.content import by_silo, report_sections
from flower_split.reporting.report.html import report_page
from flower_split.reporting.report.markdown import to_markdown

REPORT = "report.html"
"""Name of the page in a run's output folder."""

__all__ = ["REPORT", "by_silo", "report_page", "report_sections", "to_markdown"]

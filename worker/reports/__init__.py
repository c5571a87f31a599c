"""Reports of finished jobs: the numbers as JSON, and a page that stands alone and asks nothing of a network."""

from __future__ import annotations

from worker.reports.page import FactsError, Report

__all__ = ["FactsError", "Report"]

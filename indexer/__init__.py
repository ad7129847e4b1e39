"""Indexes over an export, and the trace: text → spans → exposures → documents. Plain functions, no HTTP, no torch."""

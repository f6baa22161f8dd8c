"""Reports a verdict: terminal, verification.json, report.html, JUnit, GitHub, changes.

It measures nothing itself.
"""

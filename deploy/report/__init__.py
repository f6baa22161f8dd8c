"""What is told of a verdict: terminal, verification.json, report.html, JUnit, GitHub, changes. Measures nothing itself."""

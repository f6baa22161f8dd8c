"""Scripts that measure what the documents claim, each with its result file in results/."""

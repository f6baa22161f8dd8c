"""Scripts that measure what the documents claim.

Each writes its own result file into results/.
"""

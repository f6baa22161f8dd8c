"""Run `python -m pipeline`, the same command as `pipeline`.

torchrun starts the pipeline this way.
"""

from pipeline.cli import main

if __name__ == "__main__":
    main()

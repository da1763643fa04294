"""`python -m workflow` is `voxlift`."""

from workflow.cli import main

if __name__ == "__main__":
    main()

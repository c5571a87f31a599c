"""`python -m service.cli`: the `winnow` command without its entry point."""

from service.cli import app

if __name__ == "__main__":
    app(prog_name="winnow")

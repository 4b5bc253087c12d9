"""`python -m packager`: the same as `ftpack`."""

from packager.cli.main import run

if __name__ == "__main__":
    run()

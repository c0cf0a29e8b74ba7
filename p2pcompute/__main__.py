"""`python -m p2pcompute`: the command line."""

from p2pcompute.app.main import main

if __name__ == "__main__":
    main()

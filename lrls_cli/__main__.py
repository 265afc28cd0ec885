"""`python -m lrls_cli`: the same as `lrls`, for programs that start modules, such as `torchrun`."""

from lrls_cli.main import main

if __name__ == "__main__":
    main()

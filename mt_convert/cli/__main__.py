"""``python -m mt_convert.cli``, for launchers."""

from . import main

if __name__ == "__main__":
    main()

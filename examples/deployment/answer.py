"""One field of what `flwr … --format json` printed: `flwr run … | python3 answer.py run-id`."""

import json
import sys


def main() -> int:
    """The command; returns its exit status."""
    text = sys.stdin.read()
    try:
        # Warnings of Flower may stand before the JSON.
        answer, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
        if answer.get("success") is False:
            print(f"flwr: {answer.get('error-message')}", file=sys.stderr)
            return 1
        record = answer["runs"][0] if "runs" in answer else answer
        value = record[sys.argv[1]]
    except (ValueError, KeyError, IndexError):
        print(f"flwr gave no answer that can be read:\n{text}", file=sys.stderr)
        return 1
    print("" if value is None else value)
    return 0


if __name__ == "__main__":
    sys.exit(main())

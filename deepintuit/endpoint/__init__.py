"""A client for any OpenAI-compatible `/chat/completions` endpoint that sees pictures: teacher, judge, server inference.

    endpoint = Endpoint("http://127.0.0.1:8000/v1", "my-model", cache=Path("workbench/cache"))
    endpoint.complete_many([Request("What is this?", frames)], lambda request, outcome: print(outcome))

- `client`  asks: places, tries, waits, the cache, the key
- `wire`    what goes over the line and what comes back

An answer is on disk before it is handed on, keyed by all that was asked, so a killed job pays for nothing twice; one
without anything to use is not kept. At most 16 MiB of an answer are read, unpacked. The
key is read from the environment when it is needed, and is in no field, file, log or error. Redirects are not followed:
the key goes to the host that was named, and to no other.

One turn a request, without tools; token log-probabilities and ids where they are asked for and given; streamed where
somebody watches. 429 and Retry-After limit the rate. Where frames go as pictures, a vLLM server must allow as many a
prompt as `video.frames` (`--limit-mm-per-prompt`).
Run it:  python -m pytest tests/test_endpoint.py
"""

from deepintuit.endpoint.client import BETWEEN_LOOKS, Endpoint, Outcome, Refused, Unreachable, Usage
from deepintuit.endpoint.wire import NOTHING, Completion, Pictures, Request

__all__ = [
    "BETWEEN_LOOKS",
    "NOTHING",
    "Completion",
    "Endpoint",
    "Outcome",
    "Pictures",
    "Refused",
    "Request",
    "Unreachable",
    "Usage",
]

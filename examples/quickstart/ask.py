"""Ask the quickstart's model one question through the gateway, and say how to go on. Standard library only."""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request

QUESTION = "Which city is the capital of France?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:1337/v1")
    parser.add_argument("--model", default="chat")
    parser.add_argument("--stack", default="stack.yaml", help="the manifest, for the commands shown at the end")
    parser.add_argument("--reconcile", default="reconcile", help="the program, for the commands shown at the end")
    given = parser.parse_args()
    body = {
        "model": given.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 48,
        "temperature": 0,
    }
    request = urllib.request.Request(  # noqa: S310  the address is the person's own gateway
        f"{given.base_url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
            answer = json.load(response)
    except urllib.error.HTTPError as error:
        print(f"the gateway answered {error.code}: {error.read().decode(errors='replace')}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{given.base_url} cannot be reached: {error}", file=sys.stderr)
        return 1
    print(f"\n> {QUESTION}\n{answer['choices'][0]['message']['content'].strip()}\n")
    print(NEXT.format(base=given.base_url, model=given.model, run=f"{given.reconcile} -f {given.stack}"))
    return 0


NEXT = """\
Next:
  curl {base}/chat/completions -H 'Content-Type: application/json' \\
       -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  from openai import OpenAI                                    # pip install openai
  client = OpenAI(base_url="{base}", api_key="none")
  print(client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello!"}}]))

  {run} status     # what runs
  {run} down       # stop it; --purge also removes the downloads
Edit the manifest while it runs, and the machine follows."""

if __name__ == "__main__":
    sys.exit(main())

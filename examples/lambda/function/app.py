"""Greets whoever the event names, and counts what this clone has answered."""

import hashlib
import json
import string

# Done once, when the module is imported at bake; every clone finds it in memory.
GREETING = string.Template("Hello, $name!")
TABLE = {digest: number for number in range(1000) for digest in [hashlib.sha256(b"%d" % number).hexdigest()]}

answered = 0


def handler(event, context):
    global answered
    answered += 1
    name = event.get("name", "world")
    print(json.dumps({"request": context.aws_request_id, "name": name}))
    return {
        "greeting": GREETING.substitute(name=name),
        "function": context.function_name,
        "answered": answered,
        "entries": len(TABLE),
    }

"""What libraries and programs take for unique: 32 bytes of getrandom, a uuid, and Python's generator by the client's hook."""

import os
import random
import uuid

from snapshot_restore_py import register_after_restore

register_after_restore(random.seed)


def handler(event, context):
    return " ".join([os.getrandom(32).hex(), str(uuid.uuid4()), "%032x" % random.getrandbits(128)])

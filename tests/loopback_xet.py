"""The loopback Hub with xet, the Hub's own storage, to which hf_xet uploads beside the interpreter.

It takes what the real one takes in an upload: chunks in xorbs, and shards that say of which chunks a file is made. It
does not read the xorbs, which are compressed, so what was uploaded is known by its digest and cannot be downloaded.
"""

import time

from loopback_hub import LoopbackHub, Refused

XET_CALLS = ("xet_token", "xet_known", "xet_xorb", "xet_shard")
"""What hf_xet calls, by name."""


class XetHub(LoopbackHub):
    routes = (
        ("xet_token", "GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/xet-write-token/(?P<revision>[^/]+)"),
        ("xet_known", "GET", r"/v1/chunks/[^/]+/[0-9a-f]{64}"),
        ("xet_xorb", "POST", r"/v1/xorbs/[^/]+/[0-9a-f]{64}"),
        ("xet_shard", "POST", r"/v1/shards"),
        *LoopbackHub.routes,
    )

    def __init__(self):
        super().__init__()
        self.xorb_bytes, self.shards = 0, []

    def xet_token(self, **_):
        return {"accessToken": "hf_of_an_hour", "exp": int(time.time()) + 3600, "casUrl": self.endpoint}

    def xet_known(self, **_):
        raise Refused(404, "no such chunk")

    def xet_xorb(self, body, **_):
        self.xorb_bytes += len(body)
        return {"was_inserted": True}

    def xet_shard(self, body, **_):
        self.shards.append(body)
        return {"result": 1}

    def commit(self, body, **more):
        for line in body:
            if line["key"] == "lfsFile" and self._is_described(line["value"]["oid"]):
                self.objects[line["value"]["oid"]] = bytes(line["value"]["size"])
        return super().commit(body=body, **more)

    def _is_described(self, oid):
        """Whether a shard has the file; it has the bytes of each eighth of a hash the other way round."""
        digest = bytes.fromhex(oid)
        turned = b"".join(digest[place : place + 8][::-1] for place in range(0, 32, 8))
        return any(turned in shard for shard in self.shards)

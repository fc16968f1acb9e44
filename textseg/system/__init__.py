"""Files, processes, devices, the network and the terminal: what a program needs from its machine.

Imports nothing of textseg but `errors` and `version`.
"""

from __future__ import annotations

from textseg.system.fetching import Progress, RemoteFile, fetch_file, unpack_zip
from textseg.system.hub import CODE, HubModel, carried, quiet_transformers

__all__ = ["CODE", "HubModel", "Progress", "RemoteFile", "carried", "fetch_file", "quiet_transformers", "unpack_zip"]

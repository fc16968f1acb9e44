"""The machine: files, processes, devices, downloads, and messages in the terminal.

May import only `errors` and `version`. Offers plug-ins downloads, and pretrained weights of the Hugging Face hub.
"""

from textseg.system.fetching import Progress, RemoteFile, fetch_file, unpack_zip
from textseg.system.hub import CODE, HubModel, carried, quiet_transformers

__all__ = ["CODE", "HubModel", "Progress", "RemoteFile", "carried", "fetch_file", "quiet_transformers", "unpack_zip"]

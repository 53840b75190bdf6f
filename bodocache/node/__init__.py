# SPDX-License-Identifier: Apache-2.0
"""One process a host that owns host pool, storage and planner; engines attach to it.

The node (server.py) brings pages into slots of a shared pool, or leases empty ones; the engine
(client.py) copies between them and its device pool, and checks every page's digest. Messages go
over a local socket (wire.py), pages through shared memory (memory.py).

What an engine that is gone can still do, and what follows:

* It may *read* a slot that is another page's by now. A page counts as loaded only when the bytes
  that were moved have the digest under its key, so a late read is a miss.
* It may *write* to a slot that it was leased to store in. So such slots go back only when the
  engine says that it writes no more, or its process has ended (a pidfd says so).
* It may *publish* what it wrote. Every message names the epoch its sender was attached in, and the
  node refuses those of an epoch that is over.
"""

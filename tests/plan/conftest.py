# SPDX-License-Identifier: Apache-2.0
from bodocache import jit
from bodocache.plan import optimum, pairing, reuse, window  # noqa: F401 -- what they import is to be compiled

# Here, not in a test: a cold compile is not part of any test's time. From now on a call that does
# not fit a recorded signature is a TypeError, in every test below.
jit.warm()

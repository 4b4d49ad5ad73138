"""sdeflow.system, under the name that it had before; to go with the next release."""

from sdeflow.system.published import *  # noqa: F403

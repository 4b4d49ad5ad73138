"""sdeflow.system.published, under the name that it had before; to go with the next release."""

from sdeflow.system.published import *  # noqa: F403 (all names of the old module)

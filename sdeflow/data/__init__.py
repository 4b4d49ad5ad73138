"""Data of a user's: read, split, seen anew at each visit; and image data sets, fetched and checked."""

from sdeflow.data.reading import read as read
from sdeflow.data.splitting import Split as Split
from sdeflow.data.splitting import split as split
from sdeflow.data.transforms import dequantise as dequantise
from sdeflow.data.transforms import flip as flip

"""What exists in the WebAssembly Python: the modules imported before its picture is taken, and what a program needs beyond them.

The check is the submitter's, before anything is sent. Refuses to know: how the component is built or run.
"""

from __future__ import annotations

#: Of the standard library, all that is pure Python or compiled in and of use without files, sockets, threads and processes. Some of it imports
#: what cannot work there (`socket`, `subprocess`); those names are in REFUSED.
MODULES: tuple[str, ...] = tuple(
    """
    __future__ abc argparse array ast asyncio base64 binascii bisect calendar cmath cmd codecs collections collections.abc colorsys
    concurrent.futures configparser contextlib contextvars copy copyreg csv dataclasses datetime decimal difflib dis doctest email
    email.headerregistry email.message email.mime.multipart email.mime.text email.parser email.policy email.utils
    encodings.ascii encodings.cp1252 encodings.cp437 encodings.cp850 encodings.idna encodings.iso8859_15 encodings.latin_1
    encodings.mac_roman encodings.punycode encodings.unicode_escape encodings.utf_16 encodings.utf_16_be encodings.utf_16_le encodings.utf_32
    encodings.utf_8_sig enum errno filecmp fileinput fnmatch fractions functools gc getopt gettext glob graphlib gzip hashlib heapq hmac
    html html.entities html.parser http http.cookies importlib importlib.abc importlib.machinery importlib.resources
    importlib.resources.simple importlib.util inspect io ipaddress itertools json json.decoder json.encoder keyword linecache locale
    logging logging.config logging.handlers marshal math mimetypes modulefinder ntpath numbers opcode operator optparse os os.path pathlib
    pickle pickletools pkgutil platform plistlib posixpath pprint profile cProfile pstats queue quopri random re reprlib runpy sched
    secrets selectors shelve shlex shutil signal sqlite3 stat statistics string string.templatelib stringprep struct symtable sys
    sysconfig tarfile tempfile textwrap threading time timeit token tokenize tomllib trace traceback tracemalloc types typing unicodedata
    unittest unittest.mock urllib urllib.error urllib.parse uuid warnings wave weakref xml xml.dom xml.dom.minidom xml.dom.pulldom
    xml.etree xml.etree.ElementTree xml.sax xml.sax.saxutils zipfile zlib zoneinfo _pydecimal _pyio _strptime
    """.split()
)

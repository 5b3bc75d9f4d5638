"""What names in a pickle stand for: which are admitted, which stay inert and which are refused, as data.

A name is never imported, whatever it is. The rule, in this order:

1. a name of `ADMITTED` makes plain data, by a function of detcli's own;
2. a name of `DICTS` is a dict;
3. a name of `REFUSED`, or of Python's standard library but not of `STAND_INS`, has no business in a checkpoint other
   than to run something: the file is refused;
4. any other name, and every object of it, is an inert `StandIn`: its constructor does not run, its content is dropped.
"""

from __future__ import annotations

import sys

import torch

MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
}
"""Modules that have had two names, of Python 2 and 3 and of numpy 1 and 2: which one the tables below use."""

ADMITTED = {
    "builtins.bytearray": "bytes",
    "builtins.bytes": "bytes; how Python 3 writes empty ones for Python 2",
    "builtins.complex": "a number",
    "builtins.dict": "a dict",
    "builtins.frozenset": "a frozenset",
    "builtins.getattr": "a part of a class, by this same rule; MMEngine's HistoryBuffer names its methods so",
    "builtins.list": "a list",
    "builtins.range": "a range of whole numbers",
    "builtins.set": "a set",
    "builtins.slice": "a slice of whole numbers",
    "builtins.tuple": "a tuple",
    "builtins.xrange": "a range, in Python 2",
    "_codecs.encode": "bytes; how Python 3 writes them for Python 2, in Latin-1",
    "collections.Counter": "a dict",
    "collections.OrderedDict": "a dict; every state dict is one",
    "collections.defaultdict": "a dict, without its factory",
    "collections.deque": "a list",
    "copyreg.__newobj__": "an object of the class that it is given, by this same rule",
    "copyreg.__newobj_ex__": "an object of the class that it is given, by this same rule",
    "copyreg._reconstructor": "an object of the class that it is given, by this same rule",
    "numpy.core.multiarray._reconstruct": "an array: a tensor",
    "numpy.core.multiarray.scalar": "a number",
    "numpy.core.numeric._frombuffer": "an array: a tensor",
    "numpy.dtype": "the type of an array's elements",
    "torch.Size": "a tuple",
    "torch._tensor._rebuild_from_type_v2": "a tensor with attributes, which are dropped",
    "torch._utils._rebuild_parameter": "a tensor",
    "torch._utils._rebuild_parameter_with_state": "a tensor with attributes, which are dropped",
    "torch._utils._rebuild_tensor": "a tensor, of files up to PyTorch 0.3",
    "torch._utils._rebuild_tensor_v2": "a tensor",
    "torch._utils._rebuild_tensor_v3": "a tensor whose type has no class of storages",
    "torch.storage._load_from_bytes": "a storage that was pickled without torch.save",
}
"""Names that make plain data, and which."""

DICTS = {
    "addict.addict.Dict": "the base of ConfigDict",
    "detectron.utils.collections.AttrDict": "Detectron's configs",
    "detectron2.config.config.CfgNode": "Detectron2's configs",
    "easydict.EasyDict": "configs of many projects",
    "fvcore.common.config.CfgNode": "the base of Detectron2's configs",
    "mmcv.utils.config.ConfigDict": "MMDetection's configs up to 2.x",
    "mmengine.config.config.ConfigDict": "MMDetection's configs since 3.0",
    "utils.collections.AttrDict": "Detectron's configs, of its first version",
    "yacs.config.CfgNode": "the base of the configs of pycls and Detectron2",
}
"""Classes derived from dict whose items a converter may want; their attributes are dropped."""

STAND_INS = {
    "argparse.Namespace": "settings of a training",
    "builtins.Ellipsis": "a constant",
    "builtins.bool": "a class, named as a setting",
    "builtins.float": "a class, named as a setting",
    "builtins.int": "a class, named as a setting",
    "builtins.long": "a class of Python 2",
    "builtins.object": "the base that an object of Python 2 names",
    "builtins.str": "a class, named as a setting",
    "builtins.unicode": "a class of Python 2",
    "datetime": "when a file was written",
    "decimal.Decimal": "a number that no weight is",
    "enum": "settings of a training",
    "fractions.Fraction": "a number that no weight is",
    "functools.partial": "settings of layers; it is not called",
    "logging": "what a trainer prints with",
    "pathlib": "where files were",
    "pathlib._local": "where files were, of Python 3.13",
    "random.Random": "the random state of a training",
    "types.SimpleNamespace": "settings of a training",
    "uuid.UUID": "the name of a run",
}
"""Names of the standard library, and modules with all that is directly in them, that checkpoints do hold: inert."""

REFUSED = {
    "IPython": "it runs commands",
    "cloudpickle": "it carries code",
    "dill": "it carries code",
    "joblib": "it opens other pickles",
    "numpy.distutils": "it runs commands",
    "numpy.f2py": "it compiles and runs code",
    "numpy.load": "it opens other pickles",
    "numpy.testing": "it runs code in strings",
    "pandas.read_pickle": "it opens other pickles",
    "pip": "it installs programs",
    "pkg_resources": "it imports modules",
    "setuptools": "it runs commands",
    "torch.hub": "it downloads and runs code",
    "torch.jit": "it carries code",
    "torch.load": "it opens other pickles",
    "torch.package": "it carries code",
    "torch.serialization.load": "it opens other pickles",
    "torch.utils.cpp_extension": "it compiles and runs code",
}
"""Names, modules and packages outside the standard library that would run code, and how."""

FORMER_LIBRARY = {
    *("asynchat", "asyncore", "cgi", "commands", "compiler", "cPickle", "distutils", "dummy_thread", "dummy_threading"),
    *("exceptions", "future_builtins", "imp", "ihooks", "imputil", "lib2to3", "md5", "new", "os2", "pipes", "popen2"),
    *("rexec", "sets", "sha", "smtpd", "StringIO", "cStringIO", "test", "thread", "Tkinter", "urllib2", "urlparse"),
    *("user", "UserDict", "UserList", "xmlrpclib", "SimpleHTTPServer"),
}
"""Modules of the standard library in other versions of Python than this one."""

STORAGES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
    "torch.storage.UntypedStorage": torch.uint8,
}
"""The classes of storages and the type of their elements; those of quantised numbers are not read."""

TYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float16", "float32", "float64", "bfloat16", "complex64", "complex128", "bool"),
        *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    )
}
"""Names of element types, which are values."""

NUMPY_TYPES = {
    "b1": torch.bool,
    "c16": torch.complex128,
    "c8": torch.complex64,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "u2": torch.uint16,
    "u4": torch.uint32,
    "u8": torch.uint64,
}
"""numpy's element types that torch has, too; arrays of others (texts, objects, dates) are stand-ins."""


def refusal(name: str) -> str:
    """Return why a pickle that names `name` ("module.Class", modules as in `MODULES`) is refused; "" if it is not."""
    parts = name.split(".")
    if name in ADMITTED or name in STAND_INS or ".".join(parts[:-1]) in STAND_INS:
        return ""
    for count in range(1, len(parts) + 1):
        prefix = ".".join(parts[:count])
        if prefix in REFUSED:
            return REFUSED[prefix]
    if parts[0] in sys.stdlib_module_names or parts[0] in FORMER_LIBRARY:
        return "it is of Python's own library and makes no data"
    return ""

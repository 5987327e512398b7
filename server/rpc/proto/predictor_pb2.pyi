from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Quality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUALITY_UNSPECIFIED: _ClassVar[Quality]
    QUALITY_STRICT: _ClassVar[Quality]
    QUALITY_STANDARD: _ClassVar[Quality]
    QUALITY_ECO: _ClassVar[Quality]

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_RIGHT: _ClassVar[Truncation]
    TRUNCATION_LEFT: _ClassVar[Truncation]
QUALITY_UNSPECIFIED: Quality
QUALITY_STRICT: Quality
QUALITY_STANDARD: Quality
QUALITY_ECO: Quality
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_RIGHT: Truncation
TRUNCATION_LEFT: Truncation

class Pair(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: str
    second: str
    def __init__(self, first: _Optional[str] = ..., second: _Optional[str] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("texts", "pairs", "quality", "truncate", "raw_scores")
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    RAW_SCORES_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    quality: Quality
    truncate: Truncation
    raw_scores: bool
    def __init__(self, texts: _Optional[_Iterable[str]] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., quality: _Optional[_Union[Quality, str]] = ..., truncate: _Optional[_Union[Truncation, str]] = ..., raw_scores: _Optional[bool] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("labels", "scores")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class PredictReply(_message.Message):
    __slots__ = ("predictions", "variant", "point", "reason", "cache", "version", "joules", "joules_source", "escalated", "joules_loaded", "saved_joules")
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    JOULES_FIELD_NUMBER: _ClassVar[int]
    JOULES_SOURCE_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    JOULES_LOADED_FIELD_NUMBER: _ClassVar[int]
    SAVED_JOULES_FIELD_NUMBER: _ClassVar[int]
    predictions: _containers.RepeatedCompositeFieldContainer[Prediction]
    variant: str
    point: str
    reason: str
    cache: str
    version: str
    joules: float
    joules_source: str
    escalated: int
    joules_loaded: float
    saved_joules: float
    def __init__(self, predictions: _Optional[_Iterable[_Union[Prediction, _Mapping]]] = ..., variant: _Optional[str] = ..., point: _Optional[str] = ..., reason: _Optional[str] = ..., cache: _Optional[str] = ..., version: _Optional[str] = ..., joules: _Optional[float] = ..., joules_source: _Optional[str] = ..., escalated: _Optional[int] = ..., joules_loaded: _Optional[float] = ..., saved_joules: _Optional[float] = ...) -> None: ...

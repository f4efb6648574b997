"""Trackers that take their options in three ways: named, any, and grouped."""


class Lazy:
    name = "lazy"

    def __init__(self, cache_dir=None, device=None):
        self.cache_dir = cache_dir

    def track(self): ...


class Open(Lazy):
    def __init__(self, **options):
        self.options = options


class Grouped(Lazy):
    option_names = ("label_mode",)

    def __init__(self, detector=None):
        self.detector = detector

    @classmethod
    def from_options(cls, **options):
        return cls(detector=options)

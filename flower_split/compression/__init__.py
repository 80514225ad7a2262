"""How a tensor becomes bytes and back: codecs, keyed by name and by the wire's enum."""

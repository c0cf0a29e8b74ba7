"""What crosses a wire: identity, certificates, messages, strict decoding, framing, versions."""

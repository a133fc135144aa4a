def forbidden(address: str, private: bool) -> str:
    return ""

"""The Open Inference Protocol, version 2: requests and answers as bytes, without HTTP and without pydantic."""

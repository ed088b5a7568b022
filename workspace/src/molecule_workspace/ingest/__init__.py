"""Receives the uploads that the platform pushes to a workspace with a URL.

``app`` serves them; it needs the extra ``ingest`` (starlette, and uvicorn to run it). ``form``
reads the multipart body, ``store`` puts the files of an upload on the disk, all or none, and
``types`` has the rule for media types.
"""

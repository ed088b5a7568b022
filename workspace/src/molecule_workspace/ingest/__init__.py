"""Push mode: receives the uploads that the platform sends to a workspace's URL.

``app`` is the HTTP endpoint; it needs the extra ``ingest`` (starlette, and uvicorn to run it).
``form`` parses the multipart body, ``store`` writes the files of an upload to disk, all or none,
and ``types`` determines MIME types.
"""

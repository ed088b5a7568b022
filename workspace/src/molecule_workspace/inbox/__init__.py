"""Reads the inbox of a poll workspace, from the wire to the disk.

Its modules, each knowing only those below it::

    poller           what happens when, and in which order
      messages       rows, and the URIs in messages
      uploads        files, from announcement to acknowledgement
        fetch        one file over HTTP, resumed
          part       one file on disk, growing
      history        the inbox oldest first, from platforms that cannot sort it
      journal        what a crash must not lose
      client         the wire, and what its errors mean
    events           what a caller is notified of
"""

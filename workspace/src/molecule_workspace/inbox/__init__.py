"""Poll mode: reads a workspace's inbox, downloads files and passes messages to a handler.

Each module imports only modules below it::

    poller           the loop: register, heartbeat, cursor, order of messages
      messages       rows, and the URIs in messages
      uploads        files, from announcement to acknowledgement
        fetch        one file over HTTP, resumed
          part       one incomplete file on disk
      history        the oldest rows first, from platforms that cannot sort
      journal        the state that survives a crash
      client         the HTTP API, and errors for its answers
    events           the events of a run
    options          the settings, and what a run returns
"""

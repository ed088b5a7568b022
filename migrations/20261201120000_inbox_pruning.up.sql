-- What pruning goes by: a row for each inbox that says from when on it has rows to prune, so that a sweep
-- reads the inboxes that are due and no others. Retention is configured, so these are facts and no deadlines.
CREATE TABLE inbox_pruning (
    workspace_id uuid PRIMARY KEY,
    -- No row of the inbox has a smaller seq, or is older. Later than the truth only for a row that
    -- another transaction had locked.
    oldest_seq   bigint NOT NULL,
    oldest_at    timestamptz NOT NULL,
    -- The workspace has read past that row.
    oldest_read  boolean NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE INDEX inbox_pruning_due ON inbox_pruning (oldest_read, oldest_at);

-- Unknown: the first sweep looks. Before the triggers, because writers wait from there on.
INSERT INTO inbox_pruning (workspace_id, oldest_seq, oldest_at, oldest_read)
SELECT workspace_id, 0, '-infinity', false FROM activity_counters;

-- Triggers, not statements of the platform: an older one writes to the same inboxes.
CREATE FUNCTION inbox_begun() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO inbox_pruning (workspace_id, oldest_seq, oldest_at, oldest_read)
    VALUES (NEW.workspace_id, 1, now(), false) ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;

-- It writes although oldest_read may be true already, and so waits for a batch that has the row locked: the
-- batch may have looked at the read position before, and be about to write false.
CREATE FUNCTION inbox_read() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE inbox_pruning SET oldest_read = true WHERE workspace_id = NEW.workspace_id AND oldest_seq < NEW.read_seq;
    RETURN NULL;
END $$;

CREATE TRIGGER activity_counters_begun AFTER INSERT ON activity_counters FOR EACH ROW EXECUTE FUNCTION inbox_begun();
CREATE TRIGGER activity_readers_read AFTER INSERT OR UPDATE OF read_seq ON activity_readers FOR EACH ROW EXECUTE FUNCTION inbox_read();

INSERT INTO inbox_pruning (workspace_id, oldest_seq, oldest_at, oldest_read)
SELECT workspace_id, 0, '-infinity', false FROM activity_counters ON CONFLICT DO NOTHING;

-- Deletes one batch: of the rows that are older than retention those that their workspace has read past, and
-- of the rest those that are older than unread too. The row that a workspace has read last is its cursor
-- and stays with the rest. One call is one round trip.
--
-- An inbox is pruned from its oldest row on, and created_at never runs against seq, so the rows to delete
-- are those up to the first that stays: no more than that one is read beside them. Each statement sees what
-- was committed before it, so what is read of an inbox is no older than the lock on its row.
--
-- Concurrent calls take different inboxes. more: an inbox is still due that no other call has locked. The one
-- that has it locked prunes it, and returns more if it was not done.
--
-- Sessions keep the plans of a function. The settings make them those for a large database from the start.
CREATE FUNCTION prune_inboxes(retention interval, unread interval, max_rows integer, max_inboxes integer,
    OUT pruned integer, OUT more boolean) LANGUAGE plpgsql
    SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    read_cutoff   timestamptz := now() - retention;
    unread_cutoff timestamptz := least(now() - retention, now() - unread);
    is_read       boolean;
    cutoff        timestamptz;
    inbox         inbox_pruning;
    reader        bigint;
    stop          bigint;
    is_full       boolean;
    rest_seq      bigint;
    rest_at       timestamptz;
    n             integer;
    inboxes       integer := 0;
BEGIN
    -- What a crash brings back is pruned again; hence no waiting for the disk.
    PERFORM set_config('synchronous_commit', 'off', true);
    pruned := 0;
    FOREACH is_read IN ARRAY ARRAY[true, false] LOOP
        cutoff := CASE WHEN is_read THEN read_cutoff ELSE unread_cutoff END;
        FOR inbox IN
            SELECT * FROM inbox_pruning p WHERE p.oldest_read = is_read AND p.oldest_at < cutoff
            ORDER BY p.oldest_at LIMIT max_inboxes - inboxes FOR UPDATE SKIP LOCKED
        LOOP
            EXIT WHEN pruned >= max_rows;
            inboxes := inboxes + 1;
            SELECT r.read_seq INTO reader FROM activity_readers r WHERE r.workspace_id = inbox.workspace_id;
            reader := coalesce(reader, 0);

            -- The first row that stays, or that is past what is left of the batch.
            SELECT s.seq, s.place > max_rows - pruned INTO stop, is_full FROM (
                SELECT l.seq, l.created_at, row_number() OVER (ORDER BY l.seq) AS place FROM activity_logs l
                WHERE l.workspace_id = inbox.workspace_id AND l.seq >= inbox.oldest_seq ORDER BY l.seq LIMIT max_rows - pruned + 1
            ) s
            WHERE s.place > max_rows - pruned OR s.created_at >= read_cutoff OR s.seq >= reader AND s.created_at >= unread_cutoff
            ORDER BY s.seq LIMIT 1;
            IF stop IS NULL THEN -- none stays
                SELECT c.last_seq + 1, false INTO stop, is_full FROM activity_counters c WHERE c.workspace_id = inbox.workspace_id;
            END IF;

            DELETE FROM activity_logs WHERE ctid = ANY (ARRAY(
                SELECT l.ctid FROM activity_logs l
                WHERE l.workspace_id = inbox.workspace_id AND l.seq >= inbox.oldest_seq AND l.seq < stop
                AND l.created_at < read_cutoff AND (l.seq < reader OR l.created_at < unread_cutoff)
                ORDER BY l.seq LIMIT max_rows - pruned FOR UPDATE SKIP LOCKED
            ));
            GET DIAGNOSTICS n = ROW_COUNT;
            pruned := pruned + n;

            SELECT l.seq, l.created_at INTO rest_seq, rest_at FROM activity_logs l
            WHERE l.workspace_id = inbox.workspace_id AND l.seq >= inbox.oldest_seq ORDER BY l.seq LIMIT 1;
            IF rest_seq IS NULL THEN
                rest_seq := stop;
                rest_at := now();
            ELSIF rest_seq < stop AND (n = 0 OR NOT is_full) AND (rest_at < unread_cutoff OR rest_at < read_cutoff AND rest_seq < reader) THEN
                -- Only rows that other transactions have locked are left. The next batch must not find this inbox again.
                rest_at := CASE WHEN rest_seq < reader THEN read_cutoff ELSE unread_cutoff END + interval '1 minute';
            END IF;
            UPDATE inbox_pruning p SET oldest_seq = rest_seq, oldest_at = rest_at, oldest_read = rest_seq < reader
            WHERE p.workspace_id = inbox.workspace_id;
        END LOOP;
    END LOOP;

    PERFORM FROM inbox_pruning p WHERE p.oldest_read AND p.oldest_at < read_cutoff
        ORDER BY p.oldest_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        PERFORM FROM inbox_pruning p WHERE NOT p.oldest_read AND p.oldest_at < unread_cutoff
            ORDER BY p.oldest_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    END IF;
    more := FOUND;
END $$;

-- The log loses rows by the batch. By default autovacuum waits until a fifth of a table is dead.
ALTER TABLE activity_logs SET (
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000, autovacuum_analyze_scale_factor = 0.05,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 5000);

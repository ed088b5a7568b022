-- Bytes of files outside the database: in a bucket or a folder.

-- Every store that was ever configured, so that each object can be found whatever is configured
-- now. The URL has no secrets in it. Objects are below the namespace, which is this database's alone:
-- two platforms that share a bucket do not take each other's objects for rubbish.
CREATE TABLE upload_stores (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    url        text NOT NULL UNIQUE,
    namespace  uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A row for each object, committed before the object is written, and deleted after it is: no
-- object is without one. From garbage_at on it belongs to no file and is to be deleted; NULL while it
-- has one.
CREATE TABLE upload_objects (
    object_key uuid PRIMARY KEY,
    store_id   integer NOT NULL REFERENCES upload_stores (id),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    file_id    uuid,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    garbage_at timestamptz,
    CHECK (file_id IS NOT NULL OR garbage_at IS NOT NULL)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX upload_objects_garbage ON upload_objects (garbage_at) WHERE garbage_at IS NOT NULL;

-- NULL: the bytes are in content and pending_upload_chunks, as they always were. Otherwise content is
-- empty, which a platform that does not know of objects takes for a file that has lost its bytes.
ALTER TABLE pending_uploads ADD COLUMN object_key uuid;

CREATE UNIQUE INDEX pending_uploads_object ON pending_uploads (object_key) WHERE object_key IS NOT NULL;

-- Whoever deletes a file, a platform that does not know of objects too, leaves its object to the
-- sweep of one that does.
CREATE FUNCTION release_object() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE upload_objects SET garbage_at = clock_timestamp() WHERE object_key = OLD.object_key;
    RETURN NULL;
END $$;

CREATE TRIGGER pending_uploads_object_released AFTER DELETE ON pending_uploads FOR EACH ROW
    WHEN (OLD.object_key IS NOT NULL) EXECUTE FUNCTION release_object();

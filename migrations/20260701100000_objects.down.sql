-- Files whose bytes are in a store would be lost: `platform storage migrate` with an empty STORAGE_URL
-- brings them back first. Nobody stages one while this looks.
LOCK TABLE pending_uploads IN ACCESS EXCLUSIVE MODE;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pending_uploads WHERE object_key IS NOT NULL) THEN
        RAISE EXCEPTION 'there are files whose bytes are in a store of objects; run `platform storage migrate` with an empty STORAGE_URL first';
    END IF;
END $$;
DROP TRIGGER pending_uploads_object_released ON pending_uploads;
DROP FUNCTION release_object();
ALTER TABLE pending_uploads DROP COLUMN object_key;
DROP TABLE upload_objects;
DROP TABLE upload_stores;

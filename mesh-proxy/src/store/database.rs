//! The SQLite file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use mesh_api::{ResourceType, resource::version_of};
use rusqlite::{Connection, ErrorCode, params};

use super::{Loaded, Stored, Write};

/// The form of the tables. Another one is set aside: the controller sends everything again.
const SCHEMA: i64 = 1;

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite says no.
    #[error("{operation} {}: {source}", path.display())]
    Sql {
        /// What was attempted.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file is not what was written.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file system says no.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It could not be opened.
    #[error("the store is not open")]
    Unavailable,
}

impl StoreError {
    /// Whether the content is damaged, rather than out of reach.
    pub fn is_corrupt(&self) -> bool {
        match self {
            Self::Corrupt { .. } => true,
            Self::Sql { source, .. } => matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
            ),
            Self::Io { .. } | Self::Unavailable => false,
        }
    }
}

/// Version and content.
type Versioned = (String, Vec<u8>);

/// Changes that are not on the disk.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    changes: BTreeMap<(ResourceType, String), Option<Versioned>>,
    complete: bool,
}

impl Pending {
    pub(crate) fn add(&mut self, writes: Vec<Write>, complete: bool) {
        self.complete |= complete;
        self.changes.extend(writes.into_iter().map(|w| ((w.kind, w.name), w.value)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.changes.is_empty() && !self.complete
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// An open database.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

/// What opening gave.
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) loaded: Loaded,
    pub(crate) set_aside: bool,
}

impl Database {
    /// Opens and reads the file. A damaged one is renamed to `.corrupt` and a new one begun.
    pub(crate) fn open_or_replace(path: &Path) -> Result<Opened, StoreError> {
        let opened = Self::open(path).and_then(|database| {
            let loaded = database.load()?;
            database.forget();
            Ok(Opened { database, loaded, set_aside: false })
        });
        match opened {
            Err(error) if error.is_corrupt() => {
                tracing::error!(%error, "snapshot cannot be used");
                Ok(Opened { database: Self::replace(path)?, loaded: Loaded::default(), set_aside: true })
            }
            other => other,
        }
    }

    /// A new, empty file in the place of a damaged one.
    pub(crate) fn replace(path: &Path) -> Result<Self, StoreError> {
        let aside = set_aside(path)?;
        tracing::error!(kept_as = %aside.display(), "snapshot is damaged: set aside, to be refilled");
        Self::open(path)
    }

    fn open(path: &Path) -> Result<Self, StoreError> {
        let sql = |operation| move |source| StoreError::Sql { operation, path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|source| StoreError::Io {
                operation: "create directory",
                path: dir.to_owned(),
                source,
            })?;
        }
        let connection = Connection::open(path).map_err(sql("open"))?;
        connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).map_err(sql("set up"))?;
        // An acknowledged change survives a power cut.
        connection.pragma_update(None, "synchronous", "FULL").map_err(sql("set up"))?;
        connection.pragma_update(None, "wal_autocheckpoint", 256).map_err(sql("set up"))?;
        connection.pragma_update(None, "cache_size", -512).map_err(sql("set up"))?;
        let schema: i64 =
            connection.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(sql("read"))?;
        if schema == 0 {
            connection
                .execute_batch(&format!(
                    "BEGIN;
                     CREATE TABLE IF NOT EXISTS resource(
                         type TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
                         sum TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY(type, name));
                     CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT NOT NULL);
                     PRAGMA user_version = {SCHEMA};
                     COMMIT;"
                ))
                .map_err(sql("create tables in"))?;
        } else if schema != SCHEMA {
            return Err(StoreError::Corrupt {
                path: path.to_owned(),
                reason: format!("has form {schema}, this program knows {SCHEMA}"),
            });
        }
        Ok(Self { connection, path: path.to_owned() })
    }

    fn sql<T>(&self, operation: &'static str, result: rusqlite::Result<T>) -> Result<T, StoreError> {
        result.map_err(|source| StoreError::Sql { operation, path: self.path.clone(), source })
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        let mut out = Loaded::default();
        // A damaged page may hide rows without an error, and refuse the next write.
        let check = self.connection.pragma_query_value(None, "quick_check", |r| r.get::<_, String>(0));
        let verdict = self.sql("check", check)?;
        if verdict != "ok" {
            let reason = verdict.lines().take(3).collect::<Vec<_>>().join("; ");
            return Err(StoreError::Corrupt { path: self.path.clone(), reason });
        }
        let mut query = self.sql(
            "read",
            self.connection.prepare("SELECT name, version, sum, value FROM resource WHERE type = ?1"),
        )?;
        for kind in ResourceType::ALL {
            let mut rows = self.sql("read", query.query(params![kind.as_str()]))?;
            while let Some(row) = self.sql("read", rows.next())? {
                let text = |i| self.sql("read", row.get::<_, String>(i));
                let (name, version, sum) = (text(0)?, text(1)?, text(2)?);
                let value: Vec<u8> = self.sql("read", row.get(3))?;
                let corrupt = |reason| StoreError::Corrupt { path: self.path.clone(), reason };
                if version_of(&value) != sum {
                    return Err(corrupt(format!("{} {name} is not what was written", kind.as_str())));
                }
                out.resources.push(Stored { kind, name, version, value });
            }
        }
        let complete =
            self.connection.query_row("SELECT value FROM meta WHERE key = 'complete'", [], |_| Ok(()));
        out.complete = match complete {
            Ok(()) => true,
            Err(rusqlite::Error::QueryReturnedNoRows) => false,
            Err(source) => {
                return Err(StoreError::Sql { operation: "read", path: self.path.clone(), source });
            }
        };
        Ok(out)
    }

    /// Writes all changes or none.
    pub(crate) fn write(&mut self, pending: &Pending) -> Result<(), StoreError> {
        let path = self.path.clone();
        let sql = |source| StoreError::Sql { operation: "write", path: path.clone(), source };
        let transaction = self.connection.transaction().map_err(sql)?;
        {
            let mut set = transaction
                .prepare_cached("INSERT OR REPLACE INTO resource(type, name, version, sum, value) VALUES(?1, ?2, ?3, ?4, ?5)")
                .map_err(sql)?;
            let mut remove = transaction
                .prepare_cached("DELETE FROM resource WHERE type = ?1 AND name = ?2")
                .map_err(sql)?;
            for ((kind, name), value) in &pending.changes {
                match value {
                    Some((version, bytes)) => set
                        .execute(params![kind.as_str(), name, version, version_of(bytes), bytes])
                        .map_err(sql)?,
                    None => remove.execute(params![kind.as_str(), name]).map_err(sql)?,
                };
            }
            if pending.complete {
                transaction
                    .execute("INSERT OR REPLACE INTO meta(key, value) VALUES('complete', '1')", [])
                    .map_err(sql)?;
            }
        }
        transaction.commit().map_err(sql)?;
        self.forget();
        Ok(())
    }

    /// Gives back the pages that SQLite keeps in memory: half a MiB that nobody reads before the next change.
    fn forget(&self) {
        if let Err(error) = self.connection.execute_batch("PRAGMA shrink_memory") {
            tracing::debug!(%error, "memory of the snapshot's database");
        }
    }
}

/// Renames the file and removes what belongs to it. Only the last damaged one is kept.
fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".corrupt");
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside).map_err(|source| StoreError::Io {
        operation: "set aside",
        path: path.to_owned(),
        source,
    })?;
    for suffix in ["-wal", "-shm"] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        // Not there is fine; anything else shows when the new file is opened.
        std::fs::remove_file(beside).ok();
    }
    Ok(aside)
}

//! Whom the function runs as: names and numbers, looked up in the new root without the C library's name services, which a
//! static program cannot load.

use std::fs;
use std::io;
use std::path::Path;

use crate::sys::Credentials;

/// Why a user cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("The root has no user {0} in /etc/passwd; name one that is there, or a number")]
    NoUser(String),
    #[error("The root has no group {0} in /etc/group; name one that is there, or a number")]
    NoGroup(String),
    #[error("Cannot read {file} of the root")]
    Read { file: &'static str, source: io::Error },
}

/// A user of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub credentials: Credentials,
    pub home: String,
}

/// Finds `wanted` (`uid[:gid]`, or names) in the root.
///
/// # Errors
/// A name is not there, or a file cannot be read.
pub fn find(wanted: &str) -> Result<User, UserError> {
    let passwd = read("/etc/passwd")?;
    let group = read("/etc/group")?;
    look_up(wanted, &passwd, &group)
}

/// A file that is not there has no lines.
fn read(file: &'static str) -> Result<String, UserError> {
    match fs::read(Path::new(file)) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(UserError::Read { file, source }),
    }
}

fn look_up(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let entry = passwd_entry(user, passwd);
    let uid = match &entry {
        Some(entry) => entry.uid,
        None => user.parse().map_err(|_| UserError::NoUser(user.to_owned()))?,
    };
    let gid = match (wanted_group, &entry) {
        (Some(name), _) => group_id(name, group)?,
        (None, Some(entry)) => entry.gid,
        (None, None) => 0,
    };
    // With a group of its own choice a user has that one alone, as with `docker run --user`.
    let groups = match (&entry, wanted_group) {
        (Some(entry), None) => groups_of(entry.name, group),
        _ => Vec::new(),
    };
    let home = entry.map_or("/", |entry| entry.home).to_owned();
    Ok(User { credentials: Credentials { uid, gid, groups }, home })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// passwd(5): name:password:uid:gid:comment:home:shell, by name or number.
fn passwd_entry<'a>(user: &str, passwd: &'a str) -> Option<Entry<'a>> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?;
        if name != user && uid != user {
            return None;
        }
        let gid = fields.next()?.parse().ok()?;
        Some(Entry { name, uid: uid.parse().ok()?, gid, home: fields.nth(1)? })
    })
}

/// group(5): name:password:gid:members.
fn group_fields(line: &str) -> Option<(&str, &str, &str)> {
    let mut fields = line.split(':');
    Some((fields.next()?, fields.nth(1)?, fields.next().unwrap_or_default()))
}

fn group_id(wanted: &str, group: &str) -> Result<u32, UserError> {
    let found =
        group.lines().filter_map(group_fields).find(|(name, gid, _)| *name == wanted || *gid == wanted);
    let number = found.map_or(wanted, |(_, gid, _)| gid);
    number.parse().map_err(|_| UserError::NoGroup(wanted.to_owned()))
}

fn groups_of(user: &str, group: &str) -> Vec<u32> {
    let has_user = |members: &str| members.split(',').any(|member| member == user);
    let fields = group.lines().filter_map(group_fields);
    fields.filter(|(_, _, members)| has_user(members)).filter_map(|(_, gid, _)| gid.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nwww:x:33:33::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\naudio:x:29:www,other\nvideo:x:44:www\nbroken\n";

    fn credentials(wanted: &str) -> (u32, u32, Vec<u32>, String) {
        let User { credentials, home } = look_up(wanted, PASSWD, GROUP).unwrap();
        (credentials.uid, credentials.gid, credentials.groups, home)
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let www = (33, 33, vec![29, 44], "/var/www".to_owned());
        assert_eq!(credentials("www"), www);
        assert_eq!(credentials("33"), www);
        assert_eq!(credentials("www:video"), (33, 44, vec![], "/var/www".to_owned()));
        assert_eq!(credentials("1000"), (1000, 0, vec![], "/".to_owned()));
        assert_eq!(credentials("1000:100"), (1000, 100, vec![], "/".to_owned()));
    }

    #[test]
    fn a_name_that_is_not_there_is_refused() {
        assert!(matches!(look_up("nobody", PASSWD, GROUP), Err(UserError::NoUser(name)) if name == "nobody"));
        assert!(matches!(look_up("www:wheel", PASSWD, GROUP), Err(UserError::NoGroup(_))));
        assert!(matches!(look_up("-1", PASSWD, GROUP), Err(UserError::NoUser(_))));
    }
}

//! Flags about clients: where they connect, who they may be, how many, and what they may choose.

use clap::Args;

use super::Failure;
use super::config::inherit;
use super::open_files::OpenFiles;
use super::options::fall_back;
use crate::config::{Config, Count, Names, Place, SocketMode, Text};
use crate::engine::{ExportName, Serving};
use crate::nbd::server::{Address, Limits, Ownership, Terms, Users};

/// "Strings" of the protocol: at most 4096 bytes.
const MAX_NAME: usize = 4096;

/// Where and how clients are served.
#[derive(Default, Args)]
#[command(next_help_heading = "Clients")]
pub(super) struct ClientOptions {
    /// Where clients connect: unix:PATH, tcp:HOST:PORT, vsock:PORT or vsock:CID:PORT (repeatable) [default: the sockets
    /// that were inherited (LISTEN_FDS), or a private Unix socket]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,

    /// Listen without TLS on TCP addresses that are not loopback, and on vsock: whoever sees the network sees the data
    #[arg(long)]
    insecure: bool,

    /// Mode of the files of --listen's Unix sockets, in octal [default: 0600]
    #[arg(long, value_name = "MODE")]
    socket_mode: Option<SocketMode>,

    /// User, group or both that the files of --listen's Unix sockets are given to: USER, USER:GROUP or :GROUP, by name or number
    #[arg(long, value_name = "USER:GROUP")]
    socket_owner: Option<String>,

    /// User who may connect to Unix sockets, by name or number, besides sealblk's own, root and the socket's owner
    /// (repeatable); `any` for all who can open the socket
    #[arg(long, value_name = "USER|any")]
    allow_user: Vec<String>,

    /// Connections at once, 1 to 100000; more wait [default: 1024]
    #[arg(long, value_name = "NUMBER", value_parser = served_at_once)]
    max_connections: Option<u32>,

    /// Connections at once of one peer, a user, an IP address or a virtual machine, 1 to 100000; for one more, the
    /// oldest that has not chosen an export is closed, or else the new one [default: 256]
    #[arg(long, value_name = "NUMBER", value_parser = served_to_one)]
    max_connections_per_peer: Option<u32>,

    /// Name to serve the volume under (repeatable); the first is the default export [default: the empty name]
    #[arg(long, value_name = "NAME")]
    export: Vec<String>,

    /// Name to serve the volume under besides, to clients that may change nothing (repeatable). Under the names of
    /// --export, or the empty one, clients may write all the same; see --read-only
    #[arg(long, value_name = "NAME")]
    read_only_export: Vec<String>,

    /// Where the file says who owns sockets, if it does and no flag.
    #[arg(skip)]
    owner_place: Option<Place>,

    /// Where it says who may connect.
    #[arg(skip)]
    users_place: Option<Place>,
}

impl ClientOptions {
    /// Takes from the file what no flag said.
    pub(super) fn inherit(&mut self, config: &Config) {
        let (sockets, limits) = (&config.settings.sockets, &config.settings.limits);
        fall_back(&mut self.socket_mode, &sockets.mode, Clone::clone);
        let owner = |Text(text): &Text| text.clone();
        self.owner_place = inherit(&mut self.socket_owner, config, "sockets.owner", &sockets.owner, owner);
        if let Some(setting) = sockets.allow_users.as_ref().filter(|_| self.allow_user.is_empty()) {
            let Names(users) = setting.get_ref();
            self.allow_user.clone_from(users);
            self.users_place = Some(config.place("sockets.allow_users", setting));
        }
        fall_back(&mut self.max_connections, &limits.connections, |Count(count)| *count);
        fall_back(&mut self.max_connections_per_peer, &limits.connections_per_peer, |Count(count)| *count);
    }

    /// That there are sockets which flags about sockets' files are about.
    pub(super) fn require_sockets(&self) -> Result<(), Failure> {
        let given =
            [("--socket-mode", self.socket_mode.is_some()), ("--socket-owner", self.socket_owner.is_some())];
        match given.iter().find(|(_, is_given)| *is_given) {
            Some((flag, _)) if !self.listen.iter().any(|address| address.starts_with("unix:")) => {
                Err(Failure::Usage(format!(
                    "{flag} is for the Unix sockets of --listen, and there is none: a private socket is its owner's \
                     alone, and an inherited one is as whoever made it wanted it; add --listen unix:PATH, or leave \
                     {flag} out"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Whether there are addresses of its own.
    pub(super) fn listens(&self) -> bool {
        !self.listen.is_empty()
    }

    /// The addresses.
    pub(super) fn listen(&self) -> Result<Vec<Address>, Failure> {
        Ok(self.listen.iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
    }

    /// How they are bound.
    pub(super) fn terms(&self) -> Result<Terms, Failure> {
        let mut ownership = Ownership::default();
        if let Some(SocketMode(mode)) = self.socket_mode {
            ownership.mode = mode;
        }
        if let Some(owner) = &self.socket_owner {
            (ownership.user, ownership.group) =
                owner_of(owner).map_err(|why| refused(self.owner_place.as_ref(), "--socket-owner", &why))?;
        }
        Ok(Terms { open: self.insecure, ownership })
    }

    /// How clients are served.
    pub(super) fn serving(&self, open_files: &OpenFiles) -> Result<Serving, Failure> {
        let default = Limits::default();
        let number = |flag: Option<u32>, default: usize| {
            flag.and_then(|number| usize::try_from(number).ok()).unwrap_or(default)
        };
        let limits = Limits {
            connections: open_files.fit(number(self.max_connections, default.connections)),
            connections_per_peer: number(self.max_connections_per_peer, default.connections_per_peer),
            ..default
        };
        Ok(Serving { users: self.users()?, limits, ..Serving::default() })
    }

    /// Whether addresses that are not loopback are allowed without TLS.
    pub(super) fn is_insecure(&self) -> bool {
        self.insecure
    }

    /// Who may connect to Unix sockets.
    pub(super) fn users(&self) -> Result<Users, Failure> {
        if self.allow_user.iter().any(|user| user == "any") {
            return Ok(Users::Any);
        }
        let users = self.allow_user.iter().map(|user| user_number(user));
        let users: Result<_, String> = users.collect();
        Ok(Users::Only(users.map_err(|why| refused(self.users_place.as_ref(), "--allow-user", &why))?))
    }

    /// The names of the volume.
    pub(super) fn exports(&self) -> Result<Vec<ExportName>, Failure> {
        let unnamed = self.export.is_empty().then(String::new);
        let writable = unnamed.iter().chain(&self.export).map(|name| (name, "--export", false));
        let others = self.read_only_export.iter().map(|name| (name, "--read-only-export", true));
        let mut exports: Vec<ExportName> = Vec::new();
        for (name, flag, read_only) in writable.chain(others) {
            if name.len() > MAX_NAME {
                let length = name.len();
                return Err(Failure::Usage(format!(
                    "{flag}: the name has {length} bytes, and {MAX_NAME} is the most that NBD allows; choose a shorter one"
                )));
            }
            if name.is_empty() && read_only && self.export.is_empty() {
                return Err(Failure::Usage(
                    "--read-only-export '': the empty name is that of the default export, to which clients may write; \
                     if nobody is to write, use --read-only instead, or give the export that they may write \
                     to a name with --export"
                        .into(),
                ));
            }
            if exports.iter().any(|export| export.name == *name) {
                return Err(Failure::Usage(format!(
                    "{flag} {name:?}: another export has that name; choose a different one"
                )));
            }
            exports.push(ExportName { name: name.clone(), read_only });
        }
        Ok(exports)
    }
}

fn served_at_once(text: &str) -> Result<u32, String> {
    connections(text, "clients are served at once, while others wait")
}

fn served_to_one(text: &str) -> Result<u32, String> {
    connections(text, "connections one user, IP address or virtual machine may have at once")
}

fn connections(text: &str, what: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=100_000).contains(number));
    number.ok_or_else(|| format!("give a number from 1 to 100000: how many {what}"))
}

fn refused(place: Option<&Place>, flag: &str, why: &str) -> Failure {
    match place {
        Some(place) => place.refused(why).into(),
        None => Failure::Usage(format!("{flag}: {why}")),
    }
}

/// Numbers of the user and the group in USER, USER:GROUP or :GROUP.
fn owner_of(text: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() && group.is_none_or(str::is_empty) {
        return Err(format!("{text:?} is not of the form USER, USER:GROUP or :GROUP"));
    }
    let user = (!user.is_empty()).then(|| user_number(user)).transpose()?;
    let group = group.map(group_number).transpose()?;
    Ok((user, group))
}

fn user_number(name: &str) -> Result<u32, String> {
    number("user", name, || Ok(nix::unistd::User::from_name(name)?.map(|user| user.uid.as_raw())))
}

fn group_number(name: &str) -> Result<u32, String> {
    number("group", name, || Ok(nix::unistd::Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

fn number(what: &str, name: &str, look_up: impl FnOnce() -> nix::Result<Option<u32>>) -> Result<u32, String> {
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The greatest number means "leave it as it is" to chown(2).
        let number = name.parse().ok().filter(|number| *number != u32::MAX);
        return number
            .ok_or_else(|| format!("{what} {name} is out of range, which is 0 to {}", u32::MAX - 1));
    }
    match look_up() {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err(format!("there is no {what} {name:?}; give another, or a number")),
        Err(error) => Err(format!("cannot look {what} {name:?} up: {error}; give a number")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        clients: ClientOptions,
    }

    fn clients(flags: &[&str]) -> ClientOptions {
        Line::parse_from([&["x"], flags].concat()).clients
    }

    fn names(flags: &[&str]) -> Vec<(String, bool)> {
        let exports = clients(flags).exports().unwrap();
        exports.into_iter().map(|export| (export.name, export.read_only)).collect()
    }

    #[test]
    fn the_first_name_is_the_default_exports_and_without_one_it_is_the_empty_name() {
        let named = |name: &str, read_only| (name.to_owned(), read_only);
        assert_eq!(names(&[]), [named("", false)]);
        assert_eq!(names(&["--read-only-export=r"]), [named("", false), named("r", true)]);
        let all = names(&["--read-only-export=r", "--export=b", "--export=a"]);
        assert_eq!(all, [named("b", false), named("a", false), named("r", true)]);
        for twice in [["--export=a", "--export=a"], ["--export=a", "--read-only-export=a"]] {
            assert!(matches!(clients(&twice).exports(), Err(Failure::Usage(_))));
        }
        assert!(matches!(clients(&["--read-only-export="]).exports(), Err(Failure::Usage(_))));
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(owner_of("root").unwrap(), (Some(0), None));
        assert_eq!(owner_of("12:34").unwrap(), (Some(12), Some(34)));
        assert_eq!(owner_of(":root").unwrap(), (None, Some(0)));
        for bad in ["", ":", "1:", "no such user", "root:no such group", "4294967295"] {
            assert!(owner_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_number_that_is_too_great_is_not_taken_for_a_name() {
        for number in ["4294967295", "99999999999"] {
            let said = user_number(number).unwrap_err();
            assert!(said.contains("out of range") && said.contains("0 to 4294967294"), "{said}");
        }
    }

    #[test]
    fn who_is_unknown_is_named_by_who_said_it() {
        let text = "[sockets]\nowner = ':nobody at all'\nallow_users = ['root', 'nobody at all']\n";
        let config = Config::parse(std::path::Path::new("x.toml"), text.into()).unwrap();
        let refused = |flags: &[&str]| {
            let mut clients = clients(flags);
            clients.inherit(&config);
            [clients.terms().err().unwrap(), clients.users().err().unwrap()].map(|error| error.to_string())
        };
        let [owner, users] = refused(&[]);
        assert!(owner.starts_with("x.toml, line 2: sockets.owner: there is no group"), "{owner}");
        assert!(users.starts_with("x.toml, line 3: sockets.allow_users: there is no user"), "{users}");
        let [owner, users] = refused(&["--socket-owner=nobody at all", "--allow-user=nobody at all"]);
        assert!(
            owner.starts_with("--socket-owner: ") && users.starts_with("--allow-user: "),
            "{owner}, {users}"
        );
    }

    #[test]
    fn any_user_goes_before_those_that_are_named() {
        assert_eq!(clients(&["--allow-user=12", "--allow-user=any"]).users().unwrap(), Users::Any);
        assert_eq!(
            clients(&["--allow-user=12", "--allow-user=root"]).users().unwrap(),
            Users::Only(vec![12, 0])
        );
    }
}

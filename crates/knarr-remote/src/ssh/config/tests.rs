//! What the configuration says about hosts.

use super::*;

fn context(directory: &Path) -> ConfigContext {
    ConfigContext {
        home: directory.to_path_buf(),
        local_user: "sailor".to_owned(),
        user_file: Some(directory.join(".ssh/config")),
        system_file: Some(directory.join("system")),
        system_known_hosts: Some(directory.join("ssh_known_hosts")),
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

fn config(text: &str) -> SshConfig {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join(".ssh/config"), text);
    SshConfig::load(context(directory.path())).unwrap()
}

fn to(host: &str) -> Destination {
    Destination {
        host: host.to_owned(),
        ..Destination::default()
    }
}

#[test]
fn the_first_value_wins_and_every_identity_counts() {
    let config = config(
        "Port 2000\n\
         Host short *.short !not.short\n\
         \tHostName = %h.example.com\n\
         \tUser first # not part of it\n\
         \tPort 2022\n\
         \tIdentityFile ~/.ssh/one\n\
         Host *\n\
         \tUser second\n\
         \tIdentityFile \"%d/keys/two of %r\"\n\
         \tIdentitiesOnly yes\n\
         \tUnheardOf whatever\n",
    );
    let settings = config.settings(&to("short"));
    assert_eq!(settings.host_name.as_deref(), Some("short.example.com"));
    assert_eq!(settings.user.as_deref(), Some("first"));
    assert_eq!(settings.port, Some(2000));
    assert_eq!(settings.identities_only, Some(true));
    let home = config.context.home.clone();
    let expected = [home.join(".ssh/one"), home.join("keys/two of first")];
    assert_eq!(settings.identity_files, expected);

    let settings = config.settings(&to("not.short"));
    assert_eq!(settings.host_name, None);
    assert_eq!(settings.user.as_deref(), Some("second"));
}

#[test]
fn a_match_applies_by_host_and_user_and_never_runs_anything() {
    let config = config(
        "Match host gate user root\n Port 1\n\
         Match originalhost a,b !user root\n Port 2\n\
         Match exec \"touch /tmp/never\"\n Port 3\n\
         Match localuser sailor host c\n Port 4\n\
         Match all\n Port 5\n",
    );
    let port = |host: &str, user: Option<&str>| {
        let user = user.map(str::to_owned);
        config
            .settings(&Destination {
                host: host.to_owned(),
                user,
                port: None,
            })
            .port
    };
    assert_eq!(port("gate", Some("root")), Some(1));
    assert_eq!(port("gate", None), Some(5));
    assert_eq!(port("b", None), Some(2));
    assert_eq!(port("b", Some("root")), Some(5));
    assert_eq!(port("c", None), Some(4));
    assert_eq!(port("d", None), Some(5));
}

#[test]
fn an_include_stands_where_it_is_and_ends_its_own_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let ssh = directory.path().join(".ssh");
    write(&ssh.join("conf.d/10-a.conf"), "Host inner\n Port 10\n");
    write(&ssh.join("conf.d/20-b.conf"), "User from-b\n");
    write(&ssh.join("conf.d/.hidden.conf"), "Port 99\n");
    write(
        &ssh.join("config"),
        "Include conf.d/*.conf missing.conf\nHost outer\n Include conf.d/10-a.conf\n Port 11\n",
    );
    write(
        &directory.path().join("system"),
        "Host *\n Port 12\n User of-system\n",
    );
    let config = SshConfig::load(context(directory.path())).unwrap();
    assert_eq!(config.settings(&to("inner")).port, Some(10));
    assert_eq!(config.settings(&to("outer")).port, Some(11));
    assert_eq!(config.settings(&to("else")).port, Some(12));
    assert_eq!(config.settings(&to("else")).user.as_deref(), Some("from-b"));
}

#[test]
fn files_that_include_each_other_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory.path().join(".ssh/config"), "Include config\n");
    let error = SshConfig::load(context(directory.path())).unwrap_err();
    assert!(matches!(error, ConfigError::Loop { .. }), "{error}");
}

#[test]
fn a_broken_line_is_named() {
    let directory = tempfile::tempdir().unwrap();
    for (text, what) in [
        ("\nPort many\n", "many"),
        ("\nUser \"open\n", "quotation"),
        ("\nIdentitiesOnly perhaps\n", "perhaps"),
        ("\nHostName\n", "one argument"),
        ("\nMatch\n", "criterion"),
    ] {
        write(&directory.path().join(".ssh/config"), text);
        let error = SshConfig::load(context(directory.path()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("config:2: ") && error.contains(what),
            "{error}"
        );
    }
}

#[test]
fn options_have_the_usual_keys_and_files_unless_the_configuration_says_otherwise() {
    let config = config("Host named\n UserKnownHostsFile ~/a ~/b\n GlobalKnownHostsFile none\n");
    let home = config.context.home.clone();
    let options = config
        .options(&to("plain"), &Authentication::default())
        .unwrap();
    assert_eq!((options.host.as_str(), options.port), ("plain", 22));
    assert_eq!(options.user, "sailor");
    let names: Vec<PathBuf> = options
        .authentication
        .keys
        .iter()
        .map(|key| key.path.clone())
        .collect();
    let usual = ["id_ed25519", "id_ecdsa", "id_rsa"].map(|name| home.join(".ssh").join(name));
    assert_eq!(names, usual);
    let files = |options: &SshOptions| match &options.host_key {
        HostKeyPolicy::KnownHosts { files } => files.clone(),
        other @ HostKeyPolicy::Pinned(_) => panic!("{other:?}"),
    };
    let expected = [".ssh/known_hosts", ".ssh/known_hosts2", "ssh_known_hosts"];
    assert_eq!(files(&options), expected.map(|name| home.join(name)));
    let options = config
        .options(&to("named"), &Authentication::default())
        .unwrap();
    assert_eq!(files(&options), [home.join("a"), home.join("b")]);
}

#[test]
fn jump_hosts_are_resolved_themselves_and_never_get_the_password() {
    let config = config(
        "Host inside\n ProxyJump first,admin@second:2222\n\
         Host first\n HostName first.example\n ProxyJump zeroth\n\
         Host second\n ProxyJump ignored\n\
         Host loop\n ProxyJump loop\n\
         Host direct\n ProxyJump none\n",
    );
    let authentication = Authentication {
        password: Some(crate::ssh::Secret::new("hush")),
        ..Authentication::default()
    };
    let options = config.options(&to("inside"), &authentication).unwrap();
    let hops: Vec<String> = options.jumps.iter().map(SshOptions::target).collect();
    assert_eq!(
        hops,
        [
            "sailor@zeroth:22",
            "sailor@first.example:22",
            "admin@second:2222"
        ]
    );
    assert!(options.authentication.password.is_some());
    assert!(
        options
            .jumps
            .iter()
            .all(|hop| hop.authentication.password.is_none())
    );
    assert!(!format!("{options:?}").contains("hush"));
    assert!(
        config
            .options(&to("direct"), &authentication)
            .unwrap()
            .jumps
            .is_empty()
    );
    let error = config.options(&to("loop"), &authentication).unwrap_err();
    assert!(matches!(error, ConfigError::Loop { .. }), "{error}");
}

#[test]
fn jump_hosts_are_written_in_many_ways() {
    for (text, user, host, port) in [
        ("host", None, "host", None),
        ("me@host:22", Some("me"), "host", Some(22)),
        ("ssh://me@host:22/", Some("me"), "host", Some(22)),
        ("me@corp@host", Some("me@corp"), "host", None),
        ("[::1]:22", None, "::1", Some(22)),
        ("::1", None, "::1", None),
    ] {
        let expected = Destination {
            host: host.to_owned(),
            port,
            user: user.map(str::to_owned),
        };
        assert_eq!(parse_jump(text), expected, "{text}");
    }
}

//! What a chat keeps, without a terminal and without a model.

use super::command::Command;
use super::settings::Settings;
use super::store::Store;
use super::talk::Talk;
use tempfile::TempDir;

fn talk() -> (Talk, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Talk::new(Store::new(dir.path().to_owned()), Settings::default(), None), dir)
}

#[test]
fn files_may_be_utf16() {
    let (mut t, dir) = talk();
    let path = dir.path().join("a.txt");
    let units = "\u{feff}Grüße\r\n日本".encode_utf16();
    std::fs::write(&path, units.flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    t.run(Command::File(path.display().to_string())).unwrap();
    assert_eq!(t.files[0].text, "Grüße\n日本");
}

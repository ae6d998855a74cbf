//! Runs the example of the library with the built-in model.

#[path = "../examples/library.rs"]
#[allow(dead_code, reason = "its main is for the command line")]
mod library;

#[test]
fn the_second_question_is_answered_from_the_prefix_cache() {
    let mut out = Vec::new();
    library::ask(None, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!([lines[0], lines[2]], ["It is Mara Dellwood.", "The code is 4713."]);
    let cached: Vec<usize> =
        [lines[1], lines[3]].map(|line| line.split(' ').next().unwrap().parse().unwrap()).to_vec();
    let prompt: usize = lines[3].split(' ').nth(2).unwrap().parse().unwrap();
    assert_eq!(cached[0], 0, "{text}");
    assert!(cached[1] > prompt / 2 && cached[1] < prompt, "{text}");
}

#[test]
fn x() {
    println!("{}", env!("CARGO_BIN_EXE_aura-dev"));
    println!("{}", env!("CARGO_BIN_EXE_aura-whatsapp-operator"));
    aura_whatsapp_operator::simmy();
}
